"""What a run needs to go on after it was stopped: folders of HDF5 files that are complete or do not count."""

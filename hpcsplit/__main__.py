# PYTHON_ARGCOMPLETE_OK
from hpcsplit.cli import main

raise SystemExit(main())

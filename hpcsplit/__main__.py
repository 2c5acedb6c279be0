from hpcsplit.cli import main

raise SystemExit(main())

from citadel_gateway.cli import main

raise SystemExit(main())

"""`python -m domainbuilder.background FD`: one domain's process (server.py), told of it on the socket FD."""

import sys

from domainbuilder.background.server import main

main(int(sys.argv[1]))

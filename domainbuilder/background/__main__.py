"""`python -m domainbuilder.background FD`: one domain's process (life.py), told of it on the socket FD."""

import sys

from domainbuilder.background.life import main

main(int(sys.argv[1]))

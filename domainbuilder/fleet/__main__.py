"""`python -m domainbuilder.fleet FD`: the process that runs cases (worker.py), for the socket FD."""

import sys

from domainbuilder.fleet.worker import main

main(int(sys.argv[1]))

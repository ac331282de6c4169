"""Runs ``data_tools`` once for each line of input, each time in a forked process of its own.

A line is JSON: the arguments, and a file for the output. Answers with the process's number and,
when it has ended, with its exit status.
"""

import json
import os
import sys

from PIL import Image

import data_tools.convert  # imported once for all, as is what it imports late
import data_tools.published  # noqa: F401
from data_tools.__main__ import main
from wholegrain.errors import run_cli

Image.init()
print("ready", flush=True)
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if not child:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = run_cli(main, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

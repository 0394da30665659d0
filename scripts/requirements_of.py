"""Prints what an installed package requires, without its extras and without some packages.

python scripts/requirements_of.py PACKAGE [LEFT_OUT ...]
"""

import re
import sys
from importlib.metadata import requires

package, *left_out = sys.argv[1:]
for requirement in requires(package) or ():
    name = re.match(r"[\w.-]+", requirement).group()
    if "extra ==" not in requirement and name not in left_out:
        print(requirement)

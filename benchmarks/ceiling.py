"""The benchmark client's own ceiling, as `glimt bench ceiling` measures it.

python benchmarks/ceiling.py [options of glimt bench ceiling]
"""

import subprocess
import sys

if __name__ == "__main__":
    command = [sys.executable, "-m", "glimt", "bench", "ceiling", *sys.argv[1:]]
    sys.exit(subprocess.run(command, stderr=subprocess.DEVNULL).returncode)

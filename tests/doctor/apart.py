"""Run in a network namespace of its own: a Ray cluster, one of whose nodes speaks through an address nobody reaches.

Prints what `swav-ray doctor --cluster --json` says, and the id of that node on standard error.
"""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.cluster import LocalCluster

OURS, THEIRS = "10.9.0.7", "10.9.0.1"  # of two, gloo connects to the smaller
SETUP = f"""
ip link set lo up
ip link add near0 type bridge && ip link set near0 up && ip addr add {OURS}/32 dev near0
ip link add far0 type bridge && ip link set far0 up && ip addr add {THEIRS}/32 dev far0
ip route add default dev near0
ip rule add pref 10 lookup local && ip rule del pref 0
ip rule add pref 5 to {THEIRS} unreachable
"""


def main() -> None:
    subprocess.run(["sh", "-ec", SETUP], check=True)
    os.environ["GLOO_SOCKET_IFNAME"] = "near0"
    with LocalCluster(1) as cluster:
        os.environ["GLOO_SOCKET_IFNAME"] = "far0"
        print(cluster.add_node().node_id[:8], file=sys.stderr)
        os.environ["RAY_ADDRESS"] = cluster.address
        subprocess.run([sys.executable, "-m", "swav_ray", "doctor", "--cluster", "--json"])


if __name__ == "__main__":
    main()

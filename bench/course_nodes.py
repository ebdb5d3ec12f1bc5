"""How long each node with a GPU takes to run a task in an environment that none of them knows: `NODE <seconds>`, the first
node's first. The task finds its packages and does not import them, which takes each node the same."""
import importlib.metadata
import pathlib
import sys
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

packages = pathlib.Path(sys.argv[1]).read_text().split()


@ray.remote(num_cpus=0)
def there():
    return importlib.metadata.version(packages[-1])


ray.init()
for node in sorted(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")):
    began = time.time()
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.get(there.options(runtime_env={"pip": packages}, scheduling_strategy=place).remote())
    print(f"NODE {time.time() - began:.3f}", flush=True)

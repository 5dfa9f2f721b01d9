"""Where the work of a study runs: in processes on this machine, on its GPUs, in jobs of a cluster, or on Dask.

Training and measuring are lists of units of work, such as one training run. An engine does the units of such a list,
and each kind of engine does them in another place. All engines have one method, ``run`` (see ``engine.py``), and do not
know what the work is. ``place.py`` holds the user's choice between the engines.
"""

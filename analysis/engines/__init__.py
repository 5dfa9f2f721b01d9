"""Where the work of a study runs: in processes on this machine, on its cards, in jobs of a cluster, or on Dask.

Training and measuring are lists of units of work, such as one training run. An engine does the units of a list
somewhere. Each engine is one file behind one method, ``run`` (see ``engine.py``), and knows nothing of studies but
where their folder is. ``place.py`` holds the user's choice between them.
"""

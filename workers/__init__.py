"""Many machines and many scenes: an executor for Ray, and the driver of batches.

The library finds both by entry point (ditic_stream.executors `ray`, ditic_stream.drivers `batch`) and never imports
them.  Ray itself is an extra: only ray_executor, _fleet and _actor need it; a batch runs without it.

    ray_executor   one executor among others: run_unordered, run_in_order
    _fleet         which actor does which key; what happens when one dies, runs out of memory or is slow
    _actor         the life of a worker on a node
    batch          jobs.jsonl -> executor -> journal, report          jobs, journal, report: its parts
"""

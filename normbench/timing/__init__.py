"""How layers and training steps are timed against others in one process.

`case.py` says what a layer is given and how many bytes it must move, `contestants.py` builds the
layer and what it is compared with, `stopwatch.py` takes single times on CUDA or the CPU, and
`rounds.py` takes them in turns; `entry.py` and `ratio.py` say what they amount to. `layers.py` sets
a method's layer against batch norm's, `in_step.py` and `follower.py` on two processes.

`models.py` sets a whole model with a method against the same with batch norm: `machine.py` and
`allocator.py` put the machine into a state for it, `warm_up.py` ends the untimed runs,
`norm_share.py` asks the profiler (`profiling.py`) what the normalizations take, `nvml.py` a CUDA
device for energy and clocks; `saved.py` counts what autograd keeps, and `peaks.py` measures heights
and finds the largest batch.
"""

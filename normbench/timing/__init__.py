"""How layers and training steps are timed against others in one process.

`case.py` says what a layer is given and how many bytes it must move, `contestants.py` builds the
layer and what it is compared with, `stopwatch.py` takes single times on CUDA or the CPU, and
`rounds.py` takes them in turns; `entry.py` and `ratio.py` say what they amount to. `layers.py` sets
a method's layer against batch norm's, `in_step.py` on two processes, and `memory.py` keeps the
allocator from deciding how long a small layer takes.
"""

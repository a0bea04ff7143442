"""Triton kernels that fuse a normalization with what follows it (docs/decisions/005).

Nothing here is imported before a layer meets an input that its kernels can take: `dispatch` says
so, and needs no Triton.
"""

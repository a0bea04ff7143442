"""Fused forms of the normalization methods, one file per family.

Installed as `normbench.kernels`.
"""

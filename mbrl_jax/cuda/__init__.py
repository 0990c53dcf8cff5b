"""The fused engine: Dyna-Q's loop, its scoring and the model's fit as CUDA kernels, one thread block a seed.

Nothing here is imported by an algorithm. ``make_train(config, engine=mbrl_jax.cuda.engine)`` hands it in from outside, and
``--engine cuda`` does so from the command line.
"""

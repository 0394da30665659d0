import torch

torch.set_num_threads(1)  # two OpenMP threads are 100 times slower on models this small

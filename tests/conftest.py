import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are imported
torch.set_num_threads(1)  # two OpenMP threads are 100 times slower on models this small
settings.register_profile("c2r", deadline=None)  # no timing decides a test
settings.load_profile("c2r")

"""One thread for networks far too small to share out."""

import torch

torch.set_num_threads(1)

"""The ready-made app: a federation on real data, the engines that run it, and its judgement."""

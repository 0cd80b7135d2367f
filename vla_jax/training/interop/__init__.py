"""Foreign checkpoints in and out: openpi, LeRobot, and Hugging Face's PaliGemma, Gemma, SigLIP and Qwen-VL.

`layouts` holds one table per format, read from left to right on import and from right to left on export (`rules`,
`towers`); `transfer` applies it, tensor by tensor; `sources` and `safetensors` are the files; `report` says what was
matched, missing and unexpected, `compare` how far numbers are apart; `convert` makes a checkpoint of ours.
"""

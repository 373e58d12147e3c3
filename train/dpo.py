"""
`accelerate launch -m pllava.train.dpo --config train/recipes/pllava-7b-dpo.yaml`: direct preference optimisation, on
rows of a question about a video (`messages`), a better answer (`chosen`) and a worse one (`rejected`).
"""

from trl import DPOConfig

from .__main__ import main

if __name__ == "__main__":
    main(DPOConfig)

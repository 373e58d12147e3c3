"""
The command line for direct preference optimization (DPO):
`accelerate launch -m pllava.train.dpo --config train/recipes/pllava-7b-dpo.yaml`. A row has a question about a video
(`messages`), the better answer (`chosen`) and the worse one (`rejected`).
"""

from trl import DPOConfig

from .__main__ import main

if __name__ == "__main__":
    main(DPOConfig)

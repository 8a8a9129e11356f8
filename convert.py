"""Convert Phi-4 weights for MLX; the same as the command mlx_phi4.convert.

$ python convert.py --model microsoft/Phi-4-multimodal-instruct --mlx-path phi4-4bit
"""

from mlx_phi4.commands.convert import command

if __name__ == "__main__":
    command()

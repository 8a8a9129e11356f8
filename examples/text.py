"""Text: ask a question, and print the answer as it comes.

python examples/text.py
"""

from mlx_phi4 import load, stream_generate

model, processor = load("phi4-tiny")
for response in stream_generate(model, processor, "What is the capital of France?"):
    print(response.text, end="", flush=True)
print()

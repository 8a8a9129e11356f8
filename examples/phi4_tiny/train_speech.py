"""Stage (c): speech. The conformer's warm start by CTC, the ``speech`` projector, then its LoRA."""

import random
from pathlib import Path

import numpy as np
import torch
from data_speech import RATE, passage, recording, sentence, words
from modeling import AUDIO as SIZES
from packing import exact_answers, pack, packed_loss, sound_tokens
from quantization import quantized
from speech_encoder import encode, start_local
from tokenizer import ASSISTANT, AUDIO, END, USER
from torch import nn
from torch.nn import functional as F
from training import Trainer, answer_ids, current_model, done, keep, keep_part, log, named, use
from transformers.models.phi4_multimodal import Phi4MultimodalFeatureExtractor
from vocabulary import SPEECH_PROMPTS

CLIPS, HELD_OUT_CLIPS = 8000, 200
CTC_STEPS, CTC_BATCH = 6000, 32
HIDE_FROM = 800  # step from which parts of the frames are hidden: before, words do not align
PROJECTOR_STEPS, LORA_STEPS, BATCH = 150, 7000, 24


def clips(work, held_out=False):
    """Log-mel frames (T, 80) float16 and transcripts of all clips, made once and kept."""
    name = "clips_held_out" if held_out else "clips"
    file = Path(work) / f"{name}.pt"
    if not file.exists():
        extractor = Phi4MultimodalFeatureExtractor()
        rng = random.Random(f"{name} 0")
        frames, texts = [], []
        for _ in range(HELD_OUT_CLIPS if held_out else CLIPS):
            said = [sentence(rng, held_out=True)] if held_out else passage(rng)
            texts.append(" ".join(said))
            wave = recording(rng, said, held_out)
            out = extractor(wave, sampling_rate=RATE, return_tensors="pt")
            frames.append(out["audio_input_features"][0].half())
        keep({"frames": frames, "texts": texts}, file)
    data = torch.load(file)
    return data["frames"], data["texts"]


def run_recordings(work, tokenizer):
    """Make all recordings."""
    for held_out in (False, True):
        clips(work, held_out)


def padded(frames):
    """A batch (B, T, 80) float32 and its lengths (B,)."""
    lengths = torch.tensor([len(f) for f in frames])
    return nn.utils.rnn.pad_sequence([f.float() for f in frames], batch_first=True), lengths


def hide(frames, lengths, rng, mean):
    """Another loudness; two bands of mels and two spans of time set to the mean, per clip."""
    for i, length in enumerate(lengths.tolist()):
        frames[i, :length] += rng.uniform(-1.0, 1.0)
        # a tilt of the spectrum, as other voices and microphones have
        frames[i, :length] += torch.linspace(-1, 1, 80) * rng.uniform(-1.0, 1.0)
        for _ in range(2):
            band, start = rng.randint(0, 12), rng.randint(0, 67)
            frames[i, :, start : start + band] = mean[start : start + band]
            span, start = rng.randint(0, 8), rng.randint(0, max(1, length - 8))
            frames[i, start : start + span] = mean
    return frames


def similar(rng, order, count, spread=300):
    """``count`` random members of a random stretch of ``order`` (items sorted by length)."""
    start = rng.randrange(max(1, len(order) - spread))
    return rng.sample(order[start : start + spread], count)


def edits(a, b):
    """Levenshtein distance of two lists."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def ctc_errors(encoder, head, work):
    """Word error rate of the greedy CTC reading of the held-out clips."""
    names, wrong, total = words(), 0, 0
    frames, texts = clips(work, held_out=True)
    with torch.no_grad():
        for i in range(0, len(frames), 50):
            x, lengths = encode(encoder, *padded(frames[i : i + 50]))
            for best, n, text in zip(head(x).argmax(-1), lengths, texts[i : i + 50], strict=True):
                best = torch.unique_consecutive(best[:n]).tolist()
                wrong += edits([names[k - 1] for k in best if k], text.split())
                total += len(text.split())
    return {"ctc_word_errors": round(wrong / total, 4)}


def run_encoder(work, tokenizer):
    """CTC over whole words; keep the conformer, drop the head."""
    if done(work, "4_hear"):
        return
    model = current_model(work, tokenizer)
    frames, texts = clips(work)
    encoder = model.model.embed_tokens_extend.audio_embed.encoder
    every = torch.cat([f.float() for f in frames])
    encoder.encoder_embedding.global_mean.copy_(every.mean(0))
    encoder.encoder_embedding.global_invstd.copy_(1 / every.std(0))
    start_local(encoder)
    index = {word: i + 1 for i, word in enumerate(words())}
    model.ctc = head = nn.Linear(SIZES["width"], len(index) + 1)
    order = sorted(range(len(frames)), key=lambda i: len(frames[i]))

    def step_loss(step, rng):
        picked = similar(rng, order, CTC_BATCH)
        x, lengths = padded([frames[i] for i in picked])
        if step >= HIDE_FROM:
            x = hide(x, lengths, rng, encoder.encoder_embedding.global_mean)
        x, n = encode(encoder, x, lengths)
        goal = [torch.tensor([index[w] for w in texts[i].split()]) for i in picked]
        scores = head(x).float().log_softmax(-1).transpose(0, 1)
        sizes = torch.tensor([len(g) for g in goal])
        loss = F.ctc_loss(scores, torch.cat(goal), n, sizes, zero_infinity=True)
        return loss, 0.0

    train = named(model, "audio_embed.encoder.", "ctc.")
    trainer = Trainer(work, "4_hear", model, train, CTC_STEPS, 2.5e-3, warmup=200)
    trainer.run(step_loss, check=lambda: ctc_errors(encoder, head, work))
    kept = [n for n, _ in named(model, "audio_embed.encoder.")]
    norm = "model.embed_tokens_extend.audio_embed.encoder.encoder_embedding."
    keep_part(work, "4_hear", model, [*kept, norm + "global_mean", norm + "global_invstd"])


def heard(work, model, held_out=False):
    """Conformer states (n, D) of every clip, computed once and kept, and the transcripts."""
    file = Path(work) / ("heard_held_out.pt" if held_out else "heard.pt")
    frames, texts = clips(work, held_out)
    if not file.exists():
        encoder, states = model.model.embed_tokens_extend.audio_embed.encoder, []
        with torch.no_grad():
            for i in range(0, len(frames), 50):
                x, lengths = encode(encoder, *padded(frames[i : i + 50]))
                states += [row[:n].clone() for row, n in zip(x, lengths, strict=True)]
        keep(states, file)
    return torch.load(file), texts


def speech_row(tokenizer, states, text, prompt):
    """One packed row: a clip, a request to transcribe, the transcript."""
    question = tokenizer.encode(AUDIO * len(states) + prompt + END + ASSISTANT).ids
    return tokenizer.encode(USER).ids, [(question, answer_ids(tokenizer, text))]


def joined(rng, picked):
    """The clips in groups of one to four, alike in a batch: long recordings hold more than one sentence in a piece."""
    count = rng.choices((1, 2, 3, 4), (50, 26, 14, 10))[0]
    return [picked[i : i + count] for i in range(0, len(picked), count)]


def check(work, model, tokenizer):
    """Share of exact transcripts on held-out clips, exact and with the base rounded to 4 bits."""
    states, texts = heard(work, model, held_out=True)
    rows = [speech_row(tokenizer, s, t, SPEECH_PROMPTS[i % len(SPEECH_PROMPTS)])
            for i, (s, t) in enumerate(zip(states, texts, strict=True))]  # fmt: skip
    batch, audio = pack(tokenizer, rows), model.model.embed_tokens_extend.audio_embed
    use(model, "speech")
    result = {}
    for name, active in (("speech_exact", False), ("speech_exact_4bit", True)):
        with quantized(model, active), torch.no_grad():
            sounds = sound_tokens(audio, torch.cat(states), "speech")
            result[name] = float(np.mean(exact_answers(model, tokenizer, batch, sounds=sounds)))
    return result


def run_language(work, tokenizer):
    """The ``speech`` projector alone, then with the speech LoRA, on the conformer's states."""
    if done(work, "5_transcribe"):
        return
    model = current_model(work, tokenizer)
    states, texts = heard(work, model)
    audio = model.model.embed_tokens_extend.audio_embed
    order = sorted(range(len(states)), key=lambda i: len(states[i]))

    def step_loss(step, rng):
        use(model, "speech")
        picked = similar(rng, order, BATCH)
        rows = []
        for group in joined(rng, picked):
            said, text = torch.cat([states[i] for i in group]), " ".join(texts[i] for i in group)
            rows.append(speech_row(tokenizer, said, text, rng.choice(SPEECH_PROMPTS)))
        sounds = sound_tokens(audio, torch.cat([states[i] for i in picked]), "speech")
        return packed_loss(model, tokenizer, pack(tokenizer, rows), sounds=sounds)

    projector = named(model, "proj_for_speech.")
    both = [*projector, *named(model, "lora_A.speech.", "lora_B.speech.")]
    first = Trainer(work, "5_speech_projector", model, projector, PROJECTOR_STEPS, 2e-3)
    first.run(step_loss, check=lambda: check(work, model, tokenizer))
    second = Trainer(work, "5_speech_lora", model, both, LORA_STEPS, 1.5e-3, noisy=0.5)
    second.run(step_loss, check=lambda: check(work, model, tokenizer))
    log(work, "5_transcribe", seconds=round(first.seconds + second.seconds))
    keep_part(work, "5_transcribe", model, [n for n, _ in both])

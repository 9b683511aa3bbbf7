"""Training CTC models: data, vocabulary, fine-tuning, pretraining. Nothing here is imported by `speechkit.asr`."""

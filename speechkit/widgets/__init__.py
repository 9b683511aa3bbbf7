"""Views of results in a notebook: player, spectrogram, map of sounds, units browser, microphone. No torch."""

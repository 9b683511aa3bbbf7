"""Views of results in a notebook: a player, a spectrogram. Each draws plain rows made by pure functions. No torch."""

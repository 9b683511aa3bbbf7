"""Speech recognition with CTC models: registry → model → batch → decode → Transcript. Imports no torch by itself."""

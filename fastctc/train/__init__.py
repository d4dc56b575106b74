"""The trainer: DeepSpeech2 on speech with fastctc's loss.

Needs the train extra: ``pip install 'fastctc[train]'``.
"""

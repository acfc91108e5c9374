"""Model folders on disk: read, checked against their config, and written.

Safetensors only, never pickle; ragged folders of other tools are read here too.
"""

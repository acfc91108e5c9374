"""Text and tokens: tokenization, detokenization, chat templates and pooling of embeddings."""

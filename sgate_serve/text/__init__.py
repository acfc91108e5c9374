"""Between text and tokens: tokenizing, detokenizing, chat templates, pooling of embeddings."""

"""Records on disk become typed batches: RLDS, windows, normalization, the grain loader, replay buffers.

formats.rlds_writer, formats.features       episodes -> a dataset that plain TFDS reads
formats.rlds.RldsDataset                       a split in place: columns, texts, pictures
schema.DatasetConfig                           which feature is which part of an observation
demonstrations.compute_statistics              columns -> normalization.Statistics
normalization.Normalizer                       physical units <-> what a network sees
loader.Loader                                  datasets -> the same endless stream of Demonstrations
inspect.inspect                                what is in a dataset, for people
"""

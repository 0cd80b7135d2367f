"""Records on disk become typed batches: RLDS, windows, normalization, the grain loader, replay buffers.

formats.rlds_writer, formats.features       episodes -> a dataset that plain TFDS reads
open.open_dataset                              a folder -> a split in place, RLDS or LeRobot
formats.rlds.RldsDataset                       a split in place: columns, texts, pictures
formats.lerobot.LeRobotDataset                 the same from parquet and videos
formats.lerobot_writer                         episodes -> a LeRobot v3.0 dataset
schema.DatasetConfig                           which feature is which part of an observation
demonstrations.compute_statistics              columns -> normalization.Statistics
normalization.Normalizer                       physical units <-> what a network sees
loader.Loader                                  datasets -> the same endless stream of Demonstrations
statistics.Summary                             columns in one pass -> statistics that merge
inspect.inspect, view.write_page               what is in a dataset, for people
lint.checks.lint                               what is wrong with it
"""

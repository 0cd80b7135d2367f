"""Records on disk become typed batches: RLDS, LeRobot, windows, normalization, the loader, replay buffers.

formats.rlds_writer, formats.features          episodes -> a dataset that plain TFDS reads
open.open_dataset                              a folder -> a split in place, RLDS or LeRobot
formats.rlds.RldsDataset                       a split in place: columns, texts, pictures
formats.lerobot.LeRobotDataset                 the same from parquet and videos
formats.lerobot_writer                         episodes -> a LeRobot v3.0 dataset
schema.DatasetConfig                           which feature is which part of an observation
demonstrations.compute_statistics              columns -> normalization.Statistics
normalization.Normalizer                       physical units <-> what a network sees
action_kinds.convert, invert                   recorded actions <-> movements or targets
samples.selection, samples.goals               which frames are samples, which later ones are goals
samples.order, samples.mixture                 position in the stream -> dataset and sample
loader.Loader                                  datasets -> the same endless stream of Demonstrations or Transitions
replay                                         buffers on the device and on the host, sources mixed in a batch
trajectories.chunk_batch, goal_batch            resident trajectories -> batches inside a jit, with hindsight goals
trajectory_sets                                where those come from; returns, best episodes
pictures.image_cache                           pictures transcoded once to the training resolution
pictures.augment                               random changes of pictures, inside the jit
statistics.Summary                             columns in one pass -> statistics that merge
look.inspect, look.view                        what is in a dataset, for people
lint.checks.lint                               what is wrong with it
"""

"""Acting and learning in different processes, or on different machines: weights go out, transitions come in.

messages             rows and parameters as bytes
actor.Actor          an environment on the host and a policy that acts in it, one decision after the other
spool.Spool          the rows that the learner has not acknowledged yet, in memory or on a disk
link.ActorLink       the actor's end of the connection: comes back after every loss, sends again
inbox.Inbox          the learner's end of a row: buffer, demonstrations, staleness, outcomes
server.LearnerServer the learner's end of all connections
sources              what `fit` trains from: with actors elsewhere, or with one in the same process, step by step
"""

"""Replay buffers, on the device and on the host.

device.init, insert, sample        rows of any pytree, in a ring on the device
returns.init, advance, sample      the return behind every row of such a buffer, once its episode has ended
windows.init, insert, sample       single steps of environments side by side; n-step returns and chunks made at sampling
host.HostBuffer                    rows of simulators and robots, in memory or on a disk that outlives the process
mixing                             several sources in one batch: half demonstrations, half experience
"""

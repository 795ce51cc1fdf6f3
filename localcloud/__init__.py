# SPDX-License-Identifier: GPL-3.0-or-later
"""The local cloud: one Linux machine answers as AWS.

    __main__    python -m localcloud up | down | status | image
    daemon      life of the process: start, wait until ready, stop, clear what a killed one left
    api         moto's server in our process, and what EC2 and S3 promise and moto does not do
    instances   moto's instances as hosts: states, metadata, credentials
    hosts       an instance as a systemd-nspawn container, from pending to terminated
    network     a namespace per VPC, a bridge per subnet, 1:1 NAT for public addresses
    imds        instance metadata (IMDSv2) in each VPC
    timesync    Amazon Time Sync in each VPC
    image       the root file system that every host starts from (rootfs/ is copied into it)
    machine     what the others ask of this machine: commands, namespaces, cgroups, mounts, limits

Calls go down (api -> instances -> hosts -> network -> machine), events come up by callbacks. Files are written below
/run/startline, /var/lib/startline and /var/log/startline only. `down` finds what to remove by names and numbers that
are ours alone (interfaces `startline0` and `sl-*`, namespaces `startline-*`, route protocol 83, nft table `startline`,
cgroup `startline`), so that it needs no record of what a killed daemon did.
"""

# SPDX-License-Identifier: GPL-3.0-or-later
"""The local cloud: one Linux machine answers as AWS.

    __main__    python -m localcloud up | down | status | image
    daemon      life of the process: start, wait until ready, stop, clear what a killed one left; Amazon Time Sync
    api         moto's server in our process, and what EC2 and S3 promise and moto does not do
    instances   moto's instances as hosts: their states, and what moto knows of their network
    imds        instance metadata (IMDSv2), with credentials of the instance's role
    hosts       an instance as a systemd-nspawn container, from its first boot to its end
    network     a namespace per VPC that routes between its hosts, 1:1 NAT for public addresses
    image       the root file system that every host starts from (rootfs/ is copied into it)
    machine     what the others ask of this machine: commands, cgroups, limits, and that nothing is left

Calls go down (api -> instances -> hosts -> network -> machine). The network is a function of what moto knows, computed
anew after each call that changes something. Files are written below /run/startline, /var/lib/startline and
/var/log/startline only. Mounts and namespaces live in the daemon's mount namespace and end with its last process; the
rest has names and numbers that are ours alone (interfaces `startline0` and `sl-*`, route protocol 83, nft table
`startline`, cgroup `startline`). So `down` needs no record of what a killed daemon did.
"""

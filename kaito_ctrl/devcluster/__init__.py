"""A Kubernetes cluster in one process, for development and tests; :class:`.cluster.DevCluster` is all of it.

Read it in this order: ``apiserver`` (what is stored) → ``kinds`` (how the controllers see it) → ``replicaset``,
``deploymentstatus`` and ``deployment``, ``statefulset``, ``job``, ``endpoints`` (controllers: a pure plan and a thin
shell) → ``scheduler``, ``nodelifecycle`` → ``spawn``, ``process`` and ``stdio`` (processes that cannot outlive us) →
``images``, ``environment``, ``volumes``, ``probes``, ``logs``, ``podstatus`` (what a kubelet knows) → ``streaming``
(exec, attach and port-forward on the wire) → ``console``, ``beside``, ``containerrunner``, ``podrunner``, ``kubelet``
(what it does) → ``kubeletapi`` (how it is asked) → ``proxy`` (cluster IPs) → ``cluster`` (all of it together).
"""

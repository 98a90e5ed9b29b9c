"""A whole cluster in one process: API server, controllers, scheduler, kubelet and service proxy.

It is a development and test tool. Production is any conformant Kubernetes.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from kaito_ctrl.devcluster.apiserver import ApiServer, GarbageCollector, NamespaceController, serve
from kaito_ctrl.devcluster.deployment import DeploymentController
from kaito_ctrl.devcluster.endpoints import EndpointsController
from kaito_ctrl.devcluster.images import ImageTable
from kaito_ctrl.devcluster.job import JobController
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.devcluster.nodelifecycle import NodeLifecycle
from kaito_ctrl.devcluster.podrunner import Timings
from kaito_ctrl.devcluster.proxy import ServiceProxy
from kaito_ctrl.devcluster.replicaset import ReplicaSetController
from kaito_ctrl.devcluster.scheduler import Scheduler
from kaito_ctrl.devcluster.statefulset import StatefulSetController
from kaito_ctrl.runtime import Cluster, Manager
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random

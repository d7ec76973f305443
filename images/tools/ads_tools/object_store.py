"""Buckets, users and policies of the object store, for MinIO and for versitygw. Doing it again changes nothing."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit
from xml.sax.saxutils import escape

import httpx
import urllib3
from minio import Minio, MinioAdmin
from minio.credentials.credentials import Credentials
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException, S3Error
from minio.signer import sign_v4_s3

from ads_tools.console import Failure, say, setting
from ads_tools.waiting import NotYetError, wait_until

_START_SECONDS = 300.0  # a store on a slow volume may take minutes to start
_USER_SECONDS = 60.0
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}

_READ_OBJECTS = ("s3:GetObject",)
_WRITE_OBJECTS = (
    *_READ_OBJECTS,
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)
# Without the right to list, a missing object is answered as forbidden instead of not found.
_READ_BUCKET = ("s3:ListBucket", "s3:GetBucketLocation")
_WRITE_BUCKET = (*_READ_BUCKET, "s3:ListBucketMultipartUploads")


@dataclass(frozen=True)
class User:
    """A user of one bucket.

    Attributes:
        name: access key.
        secret: secret key.
        bucket: the only bucket it sees.
        writes: whether it may write and delete, or only read.
    """

    name: str
    secret: str
    bucket: str
    writes: bool

    def statements(self) -> list[dict[str, Any]]:
        """The rights of this user as statements of an S3 policy."""
        return [
            {
                "Effect": "Allow",
                "Action": list(_WRITE_BUCKET if self.writes else _READ_BUCKET),
                "Resource": [f"arn:aws:s3:::{self.bucket}"],
            },
            {
                "Effect": "Allow",
                "Action": list(_WRITE_OBJECTS if self.writes else _READ_OBJECTS),
                "Resource": [f"arn:aws:s3:::{self.bucket}/*"],
            },
        ]


class Engine(Protocol):
    """What differs between the stores: how users and their rights are made."""

    def ensure_users(self, users: Sequence[User]) -> None:
        """Make these users, with these secrets and rights."""


class MinioEngine:
    """MinIO: a policy for each user."""

    def __init__(self, endpoint: str, credentials: Credentials) -> None:
        parts = urlsplit(endpoint)
        provider = StaticProvider(credentials.access_key, credentials.secret_key)
        self._admin = MinioAdmin(endpoint=parts.netloc, credentials=provider, secure=parts.scheme == "https")

    def ensure_users(self, users: Sequence[User]) -> None:
        """Make these users, with these secrets and rights.

        Raises:
            Failure: MinIO refuses.
        """
        for user in users:
            policy = f"{user.bucket}-{'write' if user.writes else 'read'}"
            try:
                self._admin.user_add(user.name, user.secret)  # of a user that exists it sets the secret
                self._admin.policy_add(policy, policy={"Version": "2012-10-17", "Statement": user.statements()})
                self._admin.policy_set(policy, user=user.name)
            except MinioAdminException as error:
                raise Failure(f"MinIO refuses user {user.name}: {error}") from error
            say(f"user {user.name}: {policy}")


class VersityEngine:
    """versitygw: users through its admin routes, their rights as policies of the buckets."""

    def __init__(self, endpoint: str, region: str, credentials: Credentials, buckets: Minio) -> None:
        self._endpoint = endpoint
        self._region = region
        self._credentials = credentials
        self._buckets = buckets

    def ensure_users(self, users: Sequence[User]) -> None:
        """Make these users, with these secrets and rights.

        Raises:
            Failure: versitygw refuses.
        """
        for user in users:
            account = f"<Access>{escape(user.name)}</Access><Secret>{escape(user.secret)}</Secret><Role>user</Role>"
            created = self._patch("/create-user", {}, f"<Account>{account}</Account>")
            if created.status_code == 409:
                secret = f"<Secret>{escape(user.secret)}</Secret>"
                updated = self._patch("/update-user", {"access": user.name}, f"<MutableProps>{secret}</MutableProps>")
                self._check(updated, f"user {user.name}")
            else:
                self._check(created, f"user {user.name}")
        for bucket in dict.fromkeys(user.bucket for user in users):
            statements = [
                {**statement, "Principal": {"AWS": [user.name]}}
                for user in users
                if user.bucket == bucket
                for statement in user.statements()
            ]
            try:
                self._buckets.set_bucket_policy(bucket, json.dumps({"Version": "2012-10-17", "Statement": statements}))
            except S3Error as error:
                raise Failure(
                    f"versitygw refuses the policy of bucket {bucket}: {error.code} {error.message}"
                ) from error
        for user in users:
            say(f"user {user.name}: {user.bucket}, {'reads and writes' if user.writes else 'reads'}")

    def _patch(self, path: str, query: Mapping[str, str], body: str) -> httpx.Response:
        """A signed request to an admin route."""
        content = body.encode()
        now = datetime.now(UTC)
        url = urlsplit(f"{self._endpoint}{path}" + (f"?{urlencode(query)}" if query else ""))
        digest = hashlib.sha256(content).hexdigest()
        headers: dict[str, str | list[str] | tuple[str]] = {
            "Host": url.netloc,
            "x-amz-content-sha256": digest,
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        }
        signed = sign_v4_s3(
            method="PATCH",
            url=url,
            region=self._region,
            headers=headers,
            credentials=self._credentials,
            content_sha256=digest,
            date=now,
        )
        try:
            return httpx.patch(
                url.geturl(),
                content=content,
                headers={name: str(value) for name, value in signed.items()},
                timeout=10,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            raise Failure(f"versitygw does not answer on {path}: {error!r}") from error

    @staticmethod
    def _check(response: httpx.Response, what: str) -> None:
        if response.is_error:
            raise Failure(f"versitygw refuses {what}: {response.status_code} {response.text[:300]}")


def connect(endpoint: str, region: str, credentials: Credentials) -> Minio:
    """S3 client with short timeouts and no retries of its own: the waiting is done by `wait_until`."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise Failure(f"S3_ENDPOINT_URL must look like http://host:port, not {endpoint!r}")
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=10), retries=False)
    return Minio(
        parts.netloc,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        region=region,
        secure=parts.scheme == "https",
        http_client=pool,
    )


def _attempt(operation: Callable[[], Any], refused: str) -> Any:
    """Run an S3 operation for `wait_until`: what may pass by itself is NotYetError, wrong credentials are a Failure."""
    try:
        return operation()
    except S3Error as error:
        if error.code in _REFUSED:
            raise Failure(refused) from error
        raise NotYetError(f"{error.code} {error.message}") from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise NotYetError(repr(error)) from error


def provision(root: Minio, engine: Engine, users: Sequence[User], connect_as: Callable[[User], Minio]) -> None:
    """Wait for the store, make what is missing, and prove that every user reaches its bucket.

    Args:
        root: client with the rights to make buckets.
        engine: makes the users.
        users: what there has to be.
        connect_as: gives a client with a user's own credentials.

    Raises:
        Failure: the store does not come up, or refuses.
    """
    wait_until(
        "the object store",
        lambda: _attempt(
            root.list_buckets,
            "the object store does not take the root credentials: they differ from those it was started with",
        ),
        seconds=_START_SECONDS,
    )
    for bucket in dict.fromkeys(user.bucket for user in users):
        try:
            if root.bucket_exists(bucket):
                say(f"bucket {bucket}: exists")
                continue
            root.make_bucket(bucket)
            say(f"bucket {bucket}: created")
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # another run was faster
                raise Failure(f"bucket {bucket} cannot be made: {error.code} {error.message}") from error
    engine.ensure_users(users)
    for user in users:
        wait_until(f"user {user.name}", functools.partial(_reach, connect_as(user), user), seconds=_USER_SECONDS)
    say(f"done: {len(users)} users reach their buckets")


def _reach(client: Minio, user: User) -> None:
    """Return if the user may look for an object in its bucket; stores take a moment to see new secrets."""
    try:
        client.stat_object(user.bucket, "no-such-object")
    except S3Error as error:
        if error.code != "NoSuchKey":
            raise NotYetError(f"{error.code} {error.message}") from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise NotYetError(repr(error)) from error


def main() -> None:
    """Provision the store that the environment names.

    Raises:
        Failure: a setting is missing or wrong, or the store refuses.
    """
    endpoint, region = setting("S3_ENDPOINT_URL").rstrip("/"), setting("S3_REGION", "us-east-1")
    credentials = Credentials(setting("S3_ROOT_USER"), setting("S3_ROOT_PASSWORD"))
    artifacts, training = setting("ARTIFACTS_BUCKET"), setting("TRAINING_BUCKET")
    users = [
        User(setting(f"{prefix}_ACCESS_KEY_ID"), setting(f"{prefix}_SECRET_ACCESS_KEY"), bucket, writes)
        for prefix, bucket, writes in (
            ("MLFLOW", artifacts, True),
            ("TRAINING", training, True),
            ("SERVING", artifacts, False),
        )
    ]
    root = connect(endpoint, region, credentials)
    name = setting("S3_ENGINE")
    engine: Engine
    if name == "minio":
        engine = MinioEngine(endpoint, credentials)
    elif name == "versitygw":
        engine = VersityEngine(endpoint, region, credentials, root)
    else:
        raise Failure(f"S3_ENGINE must be minio or versitygw, not {name!r}")
    provision(root, engine, users, lambda user: connect(endpoint, region, Credentials(user.name, user.secret)))

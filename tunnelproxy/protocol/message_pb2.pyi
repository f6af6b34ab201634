from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar
from typing import Optional as _Optional
from typing import Union as _Union

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper

DESCRIPTOR: _descriptor.FileDescriptor

class Message(_message.Message):
    __slots__ = ["availableServiceIds", "connectionId", "ignorable", "payload", "serviceId", "streamId", "type"]
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []

    AVAILABLESERVICEIDS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONID_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_RESET: Message.Type
    CONNECTION_START: Message.Type
    DATA: Message.Type
    IGNORABLE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SERVICEID_FIELD_NUMBER: _ClassVar[int]
    SERVICE_IDS: Message.Type
    SESSION_RESET: Message.Type
    STREAMID_FIELD_NUMBER: _ClassVar[int]
    STREAM_RESET: Message.Type
    STREAM_START: Message.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN: Message.Type
    availableServiceIds: _containers.RepeatedScalarFieldContainer[str]
    connectionId: int
    ignorable: bool
    payload: bytes
    serviceId: str
    streamId: int
    type: Message.Type
    def __init__(
        self,
        type: _Optional[_Union[Message.Type, str]] = ...,
        streamId: _Optional[int] = ...,
        ignorable: bool = ...,
        payload: _Optional[bytes] = ...,
        serviceId: _Optional[str] = ...,
        availableServiceIds: _Optional[_Iterable[str]] = ...,
        connectionId: _Optional[int] = ...,
    ) -> None: ...

package jelou.facade.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import com.google.protobuf.Message;
import java.util.function.Function;
import java.util.stream.Stream;
import jelou.facade.v1.BatchSpec;
import jelou.facade.v1.CreateBatchRequest;
import jelou.facade.v1.ListSendsRequest;
import jelou.facade.v1.ReplayBatchRequest;
import jelou.facade.v1.SendMessageRequest;
import jelou.facade.v1.SendNotificationRequest;
import jelou.facade.v1.StreamBatchRequest;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class RequestIdsTest {
  static Stream<Arguments> requests() {
    var spec = BatchSpec.newBuilder().setBotId("demo");
    Function<StreamBatchRequest.Open.Builder, StreamBatchRequest> open = o -> StreamBatchRequest.newBuilder().setOpen(o).build();
    Function<StreamBatchRequest, String> opened = r -> r.getOpen().getSpec().getRequestId();
    return Stream.of(
        request("message", SendMessageRequest.getDefaultInstance(), SendMessageRequest::getRequestId, "*"),
        request("message with an id", SendMessageRequest.newBuilder().setRequestId("own").build(), SendMessageRequest::getRequestId, "own"),
        request("dry run", SendMessageRequest.newBuilder().setValidateOnly(true).build(), SendMessageRequest::getRequestId, ""),
        request("notification", SendNotificationRequest.getDefaultInstance(), SendNotificationRequest::getRequestId, "*"),
        request("dry run of a notification", SendNotificationRequest.newBuilder().setValidateOnly(true).build(), SendNotificationRequest::getRequestId, ""),
        request("batch", CreateBatchRequest.newBuilder().setSpec(spec).build(), r -> r.getSpec().getRequestId(), "*"),
        request("dry run of a batch", CreateBatchRequest.newBuilder().setSpec(spec).setValidateOnly(true).build(), r -> r.getSpec().getRequestId(), ""),
        request("replay", ReplayBatchRequest.getDefaultInstance(), ReplayBatchRequest::getRequestId, "*"),
        request("stream", open.apply(StreamBatchRequest.Open.newBuilder().setSpec(spec)), opened, "*"),
        request("stream opened again", open.apply(StreamBatchRequest.Open.newBuilder().setBatchId("b")), opened, ""),
        request("filter of a list", ListSendsRequest.getDefaultInstance(), ListSendsRequest::getRequestId, ""));
  }

  private static <T extends Message> Arguments request(String name, T request, Function<T, String> id, String want) {
    return Arguments.of(name, request, id, want);
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("requests")
  void sendsHaveIds(String name, Message request, Function<Object, String> id, String want) {
    var got = RequestIds.identified(request);
    var found = id.apply(got);
    assertEquals(want, found.length() == 36 ? "*" : found);
    if (!want.equals("*")) {
      assertEquals(request, got);
    }
  }
}

package jelou.facade.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import io.grpc.Status.Code;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;

class FailureTest {
  @Test
  void detailsAreRead() {
    var violation = FieldViolation.newBuilder().setField("message.text.text").setDescription("must not be blank").build();
    var wait = com.google.protobuf.Duration.newBuilder().setSeconds(1).setNanos(500_000_000);
    var status = Status.newBuilder()
        .setCode(Code.RESOURCE_EXHAUSTED.value())
        .setMessage("too many wait")
        .addDetails(Any.pack(ErrorInfo.newBuilder().setReason("QUEUE_FULL").setDomain("jelou-facade").putMetadata("bot_id", "demo").build()))
        .addDetails(Any.pack(BadRequest.newBuilder().addFieldViolations(violation).build()))
        .addDetails(Any.pack(RetryInfo.newBuilder().setRetryDelay(wait).build()))
        .build();
    var want = new Failure(
        Code.RESOURCE_EXHAUSTED, "too many wait", "QUEUE_FULL", "jelou-facade", Map.of("bot_id", "demo"), List.of(violation),
        Optional.of(Duration.ofMillis(1500)));
    assertEquals(want, Failure.of(StatusProto.toStatusRuntimeException(status)));
    assertEquals(want, Failure.of(StatusProto.toStatusException(status)));
  }

  @Test
  void errorsOfAnotherOriginHaveNoReason() {
    assertEquals(empty(Code.UNKNOWN, ""), Failure.of(new IllegalStateException("of another origin")));
    assertEquals(empty(Code.UNAVAILABLE, "no connection"), Failure.of(io.grpc.Status.UNAVAILABLE.withDescription("no connection").asException()));
    var broken = Any.pack(ErrorInfo.getDefaultInstance()).toBuilder().setValue(ByteString.copyFromUtf8("broken"));
    var status = Status.newBuilder().setCode(Code.INTERNAL.value()).addDetails(broken).build();
    assertEquals(empty(Code.INTERNAL, ""), Failure.of(StatusProto.toStatusException(status)));
  }

  private static Failure empty(Code code, String message) {
    return new Failure(code, message, "", "", Map.of(), List.of(), Optional.empty());
  }
}

package jelou.facade.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * What an error of the API says.
 *
 * @param code the gRPC code
 * @param message what went wrong, for a developer
 * @param reason a name of {@link jelou.facade.v1.ErrorReason}; empty for an error of another origin
 * @param domain who says so: {@code api.jelou.ai} or {@code jelou-facade}
 * @param metadata what the error names, such as {@code send_id}
 * @param fields what is wrong with the request
 * @param retryDelay how long to wait before the call is repeated with the same request_id; empty: a retry does not help
 */
public record Failure(
    Status.Code code, String message, String reason, String domain, Map<String, String> metadata,
    List<BadRequest.FieldViolation> fields, Optional<Duration> retryDelay) {

  /** Reads the details of what a stub threw. */
  public static Failure of(Throwable error) {
    var status = Status.fromThrowable(error);
    var details = Optional.ofNullable(StatusProto.fromThrowable(error)).map(com.google.rpc.Status::getDetailsList).orElse(List.of());
    var info = detail(details, ErrorInfo.class).orElse(ErrorInfo.getDefaultInstance());
    return new Failure(
        status.getCode(), Optional.ofNullable(status.getDescription()).orElse(""), info.getReason(), info.getDomain(), info.getMetadataMap(),
        detail(details, BadRequest.class).map(BadRequest::getFieldViolationsList).orElse(List.of()),
        detail(details, RetryInfo.class).map(RetryInfo::getRetryDelay).map(d -> Duration.ofSeconds(d.getSeconds(), d.getNanos())));
  }

  private static <T extends Message> Optional<T> detail(List<Any> details, Class<T> kind) {
    for (var detail : details) {
      if (detail.is(kind)) {
        try {
          return Optional.of(detail.unpack(kind));
        } catch (InvalidProtocolBufferException e) {
          return Optional.empty(); // the code and the message still hold
        }
      }
    }
    return Optional.empty();
  }
}

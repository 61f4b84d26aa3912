package jelou.facade.client;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.ManagedChannelBuilder;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.util.Map;
import java.util.Objects;

/** Channels to jelou-facade for the generated stubs. */
public final class FacadeChannel {
  private static final Map<String, Object> SERVICE_CONFIG = serviceConfig();

  private FacadeChannel() {}

  /**
   * A builder whose channel has a request_id on every send, and the published retries and deadlines.
   *
   * @param target the server, such as {@code 127.0.0.1:50051}
   * @param credentials how the connection is secured: {@code InsecureChannelCredentials} or {@code TlsChannelCredentials}
   */
  public static ManagedChannelBuilder<?> builder(String target, ChannelCredentials credentials) {
    return configure(Grpc.newChannelBuilder(target, credentials));
  }

  /** Gives any builder what {@link #builder} has. Its interceptor stands outside of gRPC's retries: all attempts have one id. */
  public static <T extends ManagedChannelBuilder<T>> T configure(ManagedChannelBuilder<T> builder) {
    return builder.defaultServiceConfig(SERVICE_CONFIG).enableRetry().intercept(new RequestIds());
  }

  private static Map<String, Object> serviceConfig() {
    try (var stream = Objects.requireNonNull(FacadeChannel.class.getResourceAsStream("service_config.json"), "no service_config.json");
        var reader = new InputStreamReader(stream, UTF_8)) {
      return new Gson().fromJson(reader, new TypeToken<Map<String, Object>>() {});
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}

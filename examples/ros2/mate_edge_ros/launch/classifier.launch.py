"""ros2 launch mate_edge_ros classifier.launch.py bundle:=/path/NAME.mate max_ms:=5.0."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent
from launch.events import matches_action
from launch.events.process import ProcessExited, ShutdownProcess
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "bundle": (str, None, "the bundle folder, NAME.mate"),
    "max_ms": (float, "0.0", "the deadline from the image's stamp on, ms; 0 for none"),
    "policy": (str, "", "fast, balanced, accurate or deepest; the bundle's default when empty"),
    "engine": (str, "", "tensorrt or onnxruntime; the bundle's when empty"),
    "top": (int, "1", "how many classes are published"),
    "image": (str, "/camera/image_raw", "the topic of the images"),
}

MISTAKE = 2
"""The node's exit code when it would only fail in the same way again."""


def stay_down(event: ProcessExited, context: LaunchContext) -> list[EmitEvent]:
    """Keep the node from being started again after a mistake."""
    if event.returncode != MISTAKE:
        return []
    return [EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action)))]


def generate_launch_description() -> LaunchDescription:
    """Start the node; it is started again 2 s after it ends, except after a mistake."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (_, default, text) in ARGUMENTS.items()
    ]
    parameters = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, (kind, _, _) in ARGUMENTS.items()
        if name != "image"
    }
    node = Node(
        package="mate_edge_ros",
        executable="classifier",
        parameters=[parameters],
        remappings=[("image", LaunchConfiguration("image"))],
        on_exit=stay_down,
        respawn=True,
        respawn_delay=2.0,
        output="screen",
    )
    return LaunchDescription([*declared, node])

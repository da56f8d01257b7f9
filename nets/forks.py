"""Layer types of Caffe's public forks that cortado does not have: whose they are, and what they do."""

from __future__ import annotations

# "fork: Type what it does; ..." a line each; a type of several forks stands under the first.
_TABLE = """
SSD: PriorBox default boxes of a map's cells; DetectionOutput boxes decoded, suppressed and sorted;
    DetectionEvaluate counts for average precision; MultiBoxLoss SSD's loss of matched boxes;
    AnnotatedData images with boxes from a database; VideoData frames of a camera or a film
Fast R-CNN: SmoothL1Loss Huber's loss with weights
R-FCN: PSROIPooling position-sensitive pooling of regions; BoxAnnotatorOHEM hard examples of boxes;
    SmoothL1LossOHEM SmoothL1Loss of each box; SoftmaxWithLossOHEM SoftmaxWithLoss of each box
Faster R-CNN: Proposal boxes of a region proposal network, decoded and suppressed
Deformable ConvNets: DeformableConvolution convolution at learnt offsets;
    DeformablePSROIPooling PSROIPooling at learnt offsets
Mask R-CNN: ROIAlign pooling of regions by bilinear samples
SegNet: BN batch normalization with a learnt scale and shift; Upsample values put back to where a
    pooling's mask says; DenseImageData images with label images
ENet: SpatialDropout dropout of whole channels
DeconvNet: Unpooling values put back to where a pooling's mask says
DeepLab: ImageSegData images with label images; SegAccuracy accuracy and overlap of label maps;
    DenseCRF a fully connected conditional random field; MatRead blobs read from .mat files;
    MatWrite blobs written to .mat files; UniqueLabel the labels that an image has;
    AdaptiveBiasChannel scores shifted until the image's labels appear
PSPNet: SegData images with label images; BNData batch normalization's data
CRF-RNN: MultiStageMeanfield mean-field iterations of a conditional random field
FlowNet: Correlation products of patches over displacements; Correlation1D the same along rows;
    FlowWarp an image warped by a flow; Resample resizing by a kernel; Downsample a flow's averages;
    ChannelNorm Euclidean norm over channels; L1Loss (weighted) sum of distances; LpqLoss Lpq norm;
    Mean subtraction of a mean that is gathered in training; CustomData pairs with flow from a database;
    DataAugmentation random changes of images; FlowAugmentation a flow under these changes;
    GenerateAugmentationParameters what these changes are drawn from; Accum running means;
    NegReLU the negative part; FLOWriter flows written to .flo files; IMGWriter images written;
    IMGReader images read; FloatReader arrays read; FloatWriter arrays written
OpenPose: ImResize resizing of maps; Nms local maxima of maps; CPMData images with joints
SENet: Axpy channels scaled and added to others
MobileNet: DepthwiseConvolution a convolution with a group for each channel; ReLU6 ReLU cut off at 6
ShuffleNet: ShuffleChannel channels of groups interleaved; ConvolutionDepthwise a convolution with a
    group for each channel
C3D: Convolution3D convolution over space and time; Deconvolution3D its transpose;
    Pooling3D pooling over space and time; NdConvolution convolution over any number of axes;
    NdPooling pooling over any number of axes; NdDeconvolution the transpose of NdConvolution
Spatial transformer networks: SpatialTransformer an image resampled under a predicted affine map
SphereFace: MarginInnerProduct InnerProduct with an angular margin
Face networks: CenterLoss distance to each class's centre; TripletLoss distances of triplets with a
    margin; LabelSpecificAdd a margin added to the label's score; CosinAdd a margin in the cosine
CTC forks: WarpCTC connectionist temporal classification; CtcLoss the same; CTCLoss the same;
    CTCDecoder its best path; CTCGreedyDecoder its best path; Lstm an LSTM over whole sequences;
    Transpose axes in another order (Permute here); Reverse one axis backwards
YOLO: Reorg cells moved to channels; Region boxes of a map; RegionLoss YOLO's loss;
    YoloDetectionOutput boxes decoded and suppressed; Yolov3DetectionOutput the same for version 3
HED: ImageLabelmapData images with label images
Focal loss: FocalLoss softmax loss with easy examples weighted down; SoftmaxFocalLoss the same
NVIDIA DetectNet: DetectNetTransformation images and boxes augmented
"""


def _parsed() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for line in _TABLE.replace("\n    ", " ").strip().splitlines():
        fork, _, entries = line.partition(": ")
        for entry in entries.split("; "):
            type, _, does = entry.strip().partition(" ")
            found.setdefault(type, (fork, does))
    return found


FORKS = _parsed()
"""By type: the fork, and what the layer does."""
